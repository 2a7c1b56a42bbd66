"""What stands in the generated tables of the pages (see `pages.py`), a file per part of them."""

from vala_research.experiments.page_tables import card, default, fldm, flow, ge, theory, vala

TABLES = {
    name: table
    for part in (default, vala, fldm, ge, flow, theory, card)
    for name, table in part.TABLES.items()
}
