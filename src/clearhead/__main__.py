"""`python -m clearhead` is the command `clearhead`."""

import sys

try:
    from clearhead.cli import main

    main()
except KeyboardInterrupt:  # during the import
    sys.exit(130)
