"""Where a model parts from what it should answer: its preparation, host and board, float and int8; layer by layer."""
