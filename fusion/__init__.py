"""Decode-time fusion: members advance in rounds, their next-token distributions become one."""
