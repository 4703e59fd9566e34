"""Stage `corpus`: ids, domains, splits and shards for the chats that people have."""
