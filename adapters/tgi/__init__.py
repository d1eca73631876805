"""Text Generation Inference, as far as existing installations need it."""
