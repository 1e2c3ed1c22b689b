"""How far an artifact's answers may be from its source's: below the floor they are noise, and nothing is written.

Not accuracy, which only labels tell: int8 that is sound keeps 25 dB and more, and what lies below 10 dB was broken by a
library, a range or a kernel.
"""

FLOOR_DB = 10.0  # the error is a third of the answers then, root mean square
LARGE_ERROR_DB = 20.0  # it is a tenth of them
LEAST_EQUAL, FEW_EQUAL = 0.5, 0.9  # shares of equal values, as the two above
FLOOR_SAYS = f"{FLOOR_DB:g} dB, an error of a third, or {LEAST_EQUAL:.0%} of whole numbers equal"
