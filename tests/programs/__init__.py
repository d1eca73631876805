"""Programs of adapters, started by hand: what is theirs beyond the contract suite, which goes through a node agent."""
