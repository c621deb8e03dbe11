"""Sources, contracts, quarantine, the compacted prediction log, labels, dataset windows."""
