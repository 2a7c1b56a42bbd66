"""What each statement of the paper says, how it is read, and the most charitable reading.

One file per group of statements. `READINGS` has one entry per row of `python -m theory`.
"""

from theory.readings.attention import ATTENTION
from theory.readings.filter import FILTER
from theory.readings.flow import FLOW
from theory.readings.reading import LEGEND, NUMBERED, Reading, part_of
from theory.readings.temporal import TEMPORAL

READINGS: dict[str, Reading] = TEMPORAL | FILTER | ATTENTION | FLOW

__all__ = ["LEGEND", "NUMBERED", "READINGS", "Reading", "part_of"]
