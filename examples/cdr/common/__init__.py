"""What every part of the example uses: option checks, json, files, nested tensors."""
