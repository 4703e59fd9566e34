"""What tests share: small real models, tokenizers, chats, runs, servers and stores, made on the spot."""
