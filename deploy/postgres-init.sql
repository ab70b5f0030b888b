-- Run once, when the container makes its cluster. The node's role owns its database and has no other right. The
-- superuser keeps no password: it logs in by the socket inside the container alone.
\set password `cat /run/secrets/postgres_password`
CREATE ROLE cxr LOGIN PASSWORD :'password';
CREATE DATABASE cxr OWNER cxr;
ALTER ROLE postgres PASSWORD NULL;
