"""The log: one tamper-evident tree per tenant, appended by the sequencer, read and proven by the store.

Rules kept here: nothing is answered before it is durable (law 2), a decision commits only on the facts it was made on, time never
runs backwards in a log, and a log never forks, in any number of processes.
"""
