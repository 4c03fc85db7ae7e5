// Package doctor owns what a person should know of a node before something goes wrong, as findings with their mend.
//
// Facts come in: what capture's own checks have found, what the primary says of itself (ReadServer), and what package bridge has
// learnt of the broker, the machine, the other nodes and the bridge that runs. A Report goes out.
//
//  1. Each check is a function of Facts alone, small, and stops none of the others.
//  2. What could not be learnt is told as skipped, never taken for good.
//  3. Looking changes nothing; the probe, which the bridge sends, is a message in the WAL.
//
// It does not know how facts are had but for the primary's, and decides nothing for the bridge. It has no goroutine. When PostgreSQL
// is away, that is a finding, and what needs it is skipped; so with the broker and with other nodes.
//
// Begin with check.go, the list of checks.
package doctor
