"""What steering is compared with: LoRA, trained biases, mean differences, examples in the prompt."""
