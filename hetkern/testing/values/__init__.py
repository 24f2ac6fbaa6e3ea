"""What judges an operation: results and gradients against exact ones, inputs between poison."""
