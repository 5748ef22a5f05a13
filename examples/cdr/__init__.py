"""Cross-domain recommendation with learned weights for the source domain's behaviours (BIAO)."""
