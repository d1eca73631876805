"""What each request used: its tokens, its row, and the rows' way to the controller."""
