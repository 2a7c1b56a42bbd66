"""What stands in the generated tables of notebooks/README.md (see `pages.py`): a file per part."""

from vala_research.experiments.page_tables import card, default, fldm, flow, ge, vala

TABLES = {
    name: table
    for part in (default, vala, fldm, ge, flow, card)
    for name, table in part.TABLES.items()
}
