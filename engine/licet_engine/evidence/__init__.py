"""For auditors: what a tenant's log holds, exported so that it verifies without us."""
