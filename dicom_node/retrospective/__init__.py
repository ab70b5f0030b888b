"""The archive screened by night: a cohort found in a PACS, fetched politely, screened behind the live work, reported.

`cohort` says which studies are wanted, `query` asks a PACS for them and `planning` keeps them in the ledger; `window`
and `runs` decide from the ledger when a run is due; `retrieval` fetches one study, `ways` tries one way after another,
and `fetching` is the role that does so; `studies` and `settling` hold what becomes of each, `arrivals` what comes
meanwhile, and `report` tells what came of it all.
"""
