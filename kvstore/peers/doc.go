// Package peers knows who may read a cluster's store: one named peer per file
// of a directory, each with the CAs that sign its certificates, the exact name
// that these must carry, and what it may see.
//
// # Whose certificate
//
// A certificate belongs to a peer if it carries that peer's name and its chain
// leads to one of that peer's own CAs. Each candidate is verified against its
// own pool; pools are never merged, so the CA of one company cannot make a
// certificate of another. A CA that two peers trust, directly or because one
// signed the other, is refused unless both peers say that they share it.
//
// Clusters that join have their certificates from our own CA. Their files say
// ca: own, which is whatever that CA is when somebody connects: it can be
// replaced, and what it revokes or withdraws counts at once. Names alone tell
// such peers apart, for nobody but us can give them.
//
// # Files
//
// Files are followed while the process runs. A file that becomes bad leaves its
// last good state in force and is reported; a file that is gone for half a
// second removes its peer. See [Directory] for the format.
package peers
