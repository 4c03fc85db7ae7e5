package apply

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
)

// TestIntegersMayBeWiderHere: a column is widened while older transactions are on their way.
func TestIntegersMayBeWiderHere(t *testing.T) {
	t.Parallel()
	s := pgtest.SharedServer(t, pgtest.Newest(t))
	p := newPairOf(t, s, s, `CREATE TABLE t (id int2 PRIMARY KEY, n int, m int2[])`, `CREATE TABLE t (id bigint PRIMARY KEY, n bigint, m int2[])`)
	p.do(`INSERT INTO t VALUES (-1, -1, '{-1}'), (2, 2147483647, NULL)`)
	p.do(`INSERT INTO t SELECT i, -i, '{1}' FROM generate_series(10, 3000) i`)
	p.do(`UPDATE t SET n = -n WHERE id % 3 = 0`)
	p.do(`UPDATE t SET id = -id WHERE id IN (2, 11, 12)`)
	p.do(`DELETE FROM t WHERE id % 7 = 0`)
	p.same(`SELECT * FROM t ORDER BY id`)
	if st := p.status(); st.Careful != 0 {
		t.Errorf("status %+v, want nothing on the careful path", st)
	}
	if got := p.to.Value(t, `SELECT pg_typeof(id) || ' ' || pg_typeof(n) FROM t LIMIT 1`); got != "bigint bigint" {
		t.Errorf("columns are %s", got)
	}
}

// TestRewriteWhileATransactionWaits: between two looks at a row the table is rewritten. The row's new version
// has a transaction id of which a genuine local write would be later than the remote one, whatever its stamp.
func TestRewriteWhileATransactionWaits(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT)
	p.do(`INSERT INTO t VALUES (1, 'x')`)
	rewrite := func() { p.to.Exec(t, `ALTER TABLE t ALTER v TYPE text USING v || ''`) }
	rewrite()
	waits := 0
	p.wal.onPassed(func() {
		if waits++; waits == 1 {
			rewrite()
		}
	})
	p.do(`UPDATE t SET v = 'y'`)
	p.same(`SELECT * FROM t`)
	if st := p.status(); st.Careful != 1 || st.Conflicts != 0 || waits < 2 {
		t.Errorf("status %+v after %d waits", st, waits)
	}
}

// TestStableEverywhereAgainstHistory: three nodes hear of each other at random. What this node takes for stable
// everywhere, no node may still meet a transaction of a third one that had not seen it. What it takes for stable but for nodes that
// are away, no other node may that of another one.
func TestStableEverywhereAgainstHistory(t *testing.T) {
	t.Parallel()
	own, nodes := origin.Origin{Node: "own"}, []origin.Origin{{Node: "p"}, {Node: "q"}, {Node: "r"}}
	var highest, highestBut uint64
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		away := []string{"p", "q", "r"}[:seed%4]
		h := newHearsay(own, nodes)
		type frame struct {
			seq uint64
			low origin.Vector
		}
		applied := map[origin.Origin]origin.Vector{} // by node
		streams := map[origin.Origin][]frame{}
		heard := map[origin.Origin]int{}
		var last uint64
		for range 200 {
			n := nodes[r.IntN(len(nodes))]
			v := applied[n].Clone()
			switch from := nodes[r.IntN(len(nodes))]; r.IntN(5) {
			case 0: // this node commits, and n applies it
				last += uint64(r.IntN(3))
				v.Advance(origin.Entry{Origin: own, Seq: last})
			case 1: // n applies more of another one
				if s := streams[from]; from != n && len(s) > 0 {
					v.Advance(origin.Entry{Origin: from, Seq: s[r.IntN(len(s))].seq})
				}
			case 2, 3: // n publishes a transaction, or only its vector
				seq := uint64(r.IntN(2))
				if s := streams[n]; len(s) > 0 {
					seq += s[len(s)-1].seq
				}
				streams[n] = append(streams[n], frame{seq, v.Clone()})
			case 4: // this node hears n
				if s := streams[n]; heard[n] < len(s) {
					h.hear(n, s[heard[n]].seq, s[heard[n]].low)
					heard[n]++
				}
			}
			applied[n] = v
			everywhere := h.everywhereSeq()
			highest = max(highest, everywhere)
			check := func(everywhere uint64, nodes []origin.Origin) {
				for _, at := range nodes {
					if everywhere > applied[at].Seq(own) {
						t.Fatalf("seed %d: %d counts as stable, %s has applied %d", seed, everywhere, at, applied[at].Seq(own))
					}
					for _, third := range nodes {
						for _, f := range streams[third] {
							if third != at && f.seq > applied[at].Seq(third) && !f.low.Covers(own, everywhere) {
								t.Fatalf("seed %d: %d counts as stable, %s has yet to meet %s:%d, which had seen %s", seed, everywhere, at, third, f.seq, f.low)
							}
						}
					}
				}
			}
			check(everywhere, nodes)
			but := h.everywhereBut(away)
			if but < everywhere && len(away) < len(nodes) || but > 0 && len(away) == len(nodes) {
				t.Fatalf("seed %d: %d counts as stable, but for %s %d", seed, everywhere, away, but)
			}
			check(but, nodes[len(away):])
			if len(away) > 0 {
				highestBut = max(highestBut, but)
			}
		}
	}
	if highest == 0 || highestBut <= highest {
		t.Errorf("%d counted as stable at most, without nodes that are away %d", highest, highestBut)
	}
}

// TestOthersAreStableEverywhereAgainstHistory: four nodes, of which one works out what it need not keep any more of what the others
// wrote. No node may still meet a transaction of any whose author had not seen that. Without the nodes that are away, which change,
// that holds for the others.
func TestOthersAreStableEverywhereAgainstHistory(t *testing.T) {
	t.Parallel()
	own := origin.Origin{Node: "own"}
	others := []origin.Origin{{Node: "p"}, {Node: "q"}, {Node: "r"}}
	all := append([]origin.Origin{own}, others...)
	type frame struct {
		seq uint64
		low origin.Vector
	}
	var highest, highestBut uint64
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		var away []string
		h := newHearsay(own, others)
		applied := map[origin.Origin]origin.Vector{} // by node
		streams := map[origin.Origin][]frame{}
		place := map[[2]origin.Origin]int{} // how far a node has read another one's
		for range 400 {
			n, from := all[r.IntN(4)], all[r.IntN(4)]
			switch s := streams[from]; {
			case n == from: // it publishes a transaction, or only what it had seen at some time since it did so last
				low := applied[n].Clone()
				seq := uint64(r.IntN(3))
				if s := streams[n]; len(s) > 0 {
					seq += s[len(s)-1].seq
					if r.IntN(3) == 0 {
						low = s[len(s)-1].low
					}
				}
				streams[n] = append(s, frame{seq, low})
			case place[[2]origin.Origin{n, from}] < len(s):
				f := s[place[[2]origin.Origin{n, from}]]
				place[[2]origin.Origin{n, from}]++
				v := applied[n].Clone()
				v.Advance(origin.Entry{Origin: from, Seq: f.seq})
				applied[n] = v
				if n == own {
					h.hear(from, f.seq, f.low)
				}
			}
			if s := streams[own]; len(s) > 0 && r.IntN(4) == 0 {
				f := s[r.IntN(len(s))] // the last durable one
				if r.IntN(20) == 0 {
					away = []string{"p", "q", "r"}[r.IntN(3):][:r.IntN(2)]
				}
				h.turn(f.seq, f.low, away)
			}
			check := func(o origin.Origin, everywhere uint64, nodes []origin.Origin) {
				for _, at := range nodes {
					for _, author := range nodes {
						for _, f := range streams[author] {
							if author != o && author != at && f.seq > applied[at].Seq(author) && !f.low.Covers(o, everywhere) {
								t.Fatalf("seed %d: %s:%d counts as stable, %s has yet to meet %s:%d, which had seen %s", seed, o.Node, everywhere, at, author, f.seq, f.low)
							}
						}
					}
				}
			}
			present := slices.DeleteFunc(slices.Clone(all), func(o origin.Origin) bool { return slices.Contains(h.present.away, o.Node) })
			for _, o := range others {
				everywhere, but := h.everywhereOf(o), h.everywhereOfBut(o)
				check(o, everywhere, all)
				check(o, but, present)
				highest, highestBut = max(highest, everywhere), max(highestBut, but)
			}
		}
	}
	if highest == 0 || highestBut <= highest {
		t.Errorf("%d counted as stable at most, without nodes that are away %d", highest, highestBut)
	}
}

// TestSightsAreBounded: what is forgotten for lack of room makes less count as stable.
func TestSightsAreBounded(t *testing.T) {
	own, p, q := origin.Origin{Node: "own"}, origin.Origin{Node: "p"}, origin.Origin{Node: "q"}
	h := newHearsay(own, []origin.Origin{p, q})
	n := uint64(3 * sightLimit)
	for seq := uint64(1); seq <= n; seq++ {
		h.hear(p, seq, origin.Vector{{Origin: own, Seq: seq}, {Origin: q, Seq: 1}})
	}
	h.hear(q, 1, origin.Vector{{Origin: own, Seq: n}, {Origin: p, Seq: n / 2}})
	if got := h.everywhereSeq(); len(h.ours[p]) > sightLimit || got > n/2 || got < n/4 {
		t.Errorf("%d sights are kept, %d counts as stable", len(h.ours[p]), got)
	}
	h.hear(q, 2, origin.Vector{{Origin: own, Seq: n}, {Origin: p, Seq: n}})
	h.hear(p, n, origin.Vector{{Origin: own, Seq: n}, {Origin: q, Seq: 2}})
	if got := h.everywhereSeq(); got != n {
		t.Errorf("%d counts as stable, want %d", got, n)
	}
}
