"""One machine's cluster: what `slice up`, `down` and `doctor` do; the typer commands are in cli/commands."""
