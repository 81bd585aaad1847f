"""The output folder of `embed`: job, shards, ledger, manifest, lock, verification."""
