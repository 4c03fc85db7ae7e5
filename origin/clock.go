package origin

import "math"

const minStamp = Stamp(math.MinInt64)

// Clock makes the stamps of one origin. It is a pure function of what it is given: no wall clock, no
// memory but Last (PROOF.md R5), so that decoding the same WAL again gives the same stamps. The zero
// Clock has stamped nothing. Not safe for concurrent use.
type Clock struct {
	Last Stamp // of the last transaction; restored from the stream's tail after a restart
}

// Next stamps the origin's next transaction: its commit timestamp, lifted above the last stamp and above
// everything in up, which its author may have seen. Commit timestamps of concurrent sessions can be in
// the other order than their commit records (PROOF.md F1), which is why the last stamp counts.
func (c *Clock) Next(commitTime Stamp, up Vector) Stamp {
	s := max(commitTime, c.Last+1)
	if m := up.MaxStamp(); m != minStamp {
		s = max(s, m+1)
	}
	c.Last = s
	return s
}
