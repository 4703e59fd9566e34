"""The only helpers that know Ray: the cluster, streams of items through pools, the board, the gauges."""
