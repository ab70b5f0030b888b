"""The archive screened by night: a cohort found in a PACS, fetched politely, screened behind the live work, reported.

`cohort` says which studies are wanted, `query` asks a PACS for them and `planning` keeps them in the ledger; `window`
and `budget` decide from the ledger when a run may fetch; `retrieval` fetches one study, `fetching` is the role that
does so while a run is due; `runs` holds the ledger's queries, and `report` tells what came of it.
"""
