"""What an operation is judged on: inputs, configurations by seed, families, planted errors."""
