"""PostgreSQL's connector: logical replication (pgoutput) and chunks of its tables. The way in is `source`.

`connect` opens connections and says what their errors mean; `checks` and `setup` see to settings, privileges,
publication and slot; `description` reads what tables look like, `types` and `values` what their columns become;
`decoders` compiles a reader of rows for each table; `pgoutput` knows the messages, `stream` receives them, `chunks`
reads what was there before. What all databases share is streaming.capture's.
"""
