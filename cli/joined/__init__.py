"""A machine that joined a cluster: how it joins, and what `slice up`, `status`, `doctor` and `logs` mean there."""
