"""What several tests share: problems with a closed form, and hypothesis strategies."""
