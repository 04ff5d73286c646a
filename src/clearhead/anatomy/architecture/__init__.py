"""Any decoder-only transformer as a flow chart: what it consists of, how it flows, how it differs from GPT-2."""
