"""``python -m cli`` is ``synthgen``, also where the script is not installed."""

from cli.main import main

main(prog_name="synthgen")
