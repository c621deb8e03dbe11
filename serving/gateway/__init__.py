"""The gateway: validation, routing by the ledger, the prediction log."""
