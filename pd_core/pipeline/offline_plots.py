"""HTML template with which `dvc plots` draws without a network.

DVC loads Vega, which draws the plots, from the network. This template contains Vega (1 MB); git
ignores it, and `.dvc/config.local` names it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from pd_core.core.atomic import write_folder
from pd_core.core.errors import PdError
from pd_core.pipeline.processes import DVC

_VEGA_LITE = "5.21"  # DVC's plots are written for version 5
_TEMPLATE = """\
<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
{refresh_tag}
<title>DVC plots</title>
<script>VEGA</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def write(root: Path) -> Path:
    """Write the template of a DVC project, and set it in the project's local configuration.

    Raises:
        PdError: vl-convert-python is not installed, or DVC refuses the setting.
    """
    try:
        from vl_convert import javascript_bundle
    except ImportError:
        raise PdError(
            "vl-convert-python is not installed, and the template has Vega from it; run "
            "`pip install -c constraints.txt vl-convert-python`"
        ) from None
    file = root / ".dvc" / "offline_plots" / "template.html"
    vega = javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE)
    with write_folder(file.parent) as new:
        (new / ".gitignore").write_text("*\n", "utf-8")
        (new / file.name).write_text(_TEMPLATE.replace("VEGA", vega), "utf-8")
    setting = ("plots.html_template", file.relative_to(root / ".dvc").as_posix())
    command = (*DVC, "config", "--local", *setting)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PdError(f"`dvc config` failed: {done.stderr.strip()}")
    return file
