"""The data room: the compacted prediction log, day partitions, the contract and its quarantine, dataset windows."""
