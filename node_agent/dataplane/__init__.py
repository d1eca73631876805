"""The node's data plane: one HAProxy through which other machines reach its engines and files. See design.md."""
