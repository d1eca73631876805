"""What requests used: one row each, summed up by key, project, model, deployment, node or day."""
