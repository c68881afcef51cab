"""The networks of the family, from nano to 9B, and their weights: a model is a spec (numbers) plus weights."""

import os

# A picture made in a pass with others must be the picture made alone, and the one made by any number of threads. By
# itself MKL shares products out, and adds them up, by the number of rows and threads. In strict mode
# (https://www.intel.com/content/www/us/en/docs/onemkl/developer-guide-linux/, "conditional numerical reproducibility")
# it does not, and is as fast; where there is no such mode, `kleinbild.model.linear` helps. It reads this when it computes
# for the first time.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
