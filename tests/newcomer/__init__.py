"""A newcomer's first engine, written by docs/checklists/new-engine.md and no other page; `test_new_engine` adds it."""
