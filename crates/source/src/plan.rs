//! Where a restore goes and whether it can go there, found out without changing anything.
