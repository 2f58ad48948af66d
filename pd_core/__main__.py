"""Run the command line as `python -m pd_core`, which is how DVC's stages are started."""

from __future__ import annotations

import sys

from pd_core.core.errors import require

if __name__ == "__main__":
    require()
    from pd_core.cli.fork_server import delegate

    delegate(sys.argv[1:])
    from pd_core.cli.verbs import main

    main()
