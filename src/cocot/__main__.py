"""`python -m cocot` is `cocot`."""

import sys

from cocot.cli import main

sys.exit(main())
