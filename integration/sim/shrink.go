package sim

import "slices"

// Shrink removes events and statements from a schedule as long as it still fails, and returns the smallest one that it
// finds.
func Shrink(s *Schedule, fails func(*Schedule) bool) *Schedule {
	best := *s
	try := func(next Schedule) bool {
		if !fails(&next) {
			return false
		}
		best = next
		return true
	}
	for before := -1; before != best.size(); {
		before = best.size()
		for n := len(best.Events); n > 0; n /= 2 {
			for at := 0; at < len(best.Events); {
				next := best
				next.Events = slices.Delete(slices.Clone(best.Events), at, min(at+n, len(best.Events)))
				if !try(next) {
					at += n
				}
			}
		}
		for i := range best.Events {
			for at := 0; at < len(best.Events[i].Ops) && len(best.Events[i].Ops) > 1; {
				next := best
				next.Events = slices.Clone(best.Events)
				next.Events[i].Ops = slices.Delete(slices.Clone(best.Events[i].Ops), at, at+1)
				if !try(next) {
					at++
				}
			}
		}
		simplify(&best, try)
	}
	return &best
}

// simplify takes away what a schedule has apart from its events.
func simplify(best *Schedule, try func(Schedule) bool) {
	for n := range best.Skew {
		if next := *best; next.Skew[n] != 0 {
			next.Skew = slices.Clone(best.Skew)
			next.Skew[n] = 0
			try(next)
		}
	}
	if next := *best; next.Filled {
		next.Filled = false
		try(next)
	}
	if next := *best; next.Grain > 1 {
		next.Grain = 1
		try(next)
	}
	if next := *best; next.Nodes > 2 {
		last := next.Nodes - 1
		next.Nodes, next.Skew = last, best.Skew[:last]
		if !slices.ContainsFunc(best.Events, func(e Event) bool { return e.Node == last || e.Peer == last }) {
			try(next)
		}
	}
}

func (s *Schedule) size() int {
	n := len(s.Events) + s.Nodes
	for i := range s.Events {
		n += len(s.Events[i].Ops)
	}
	return n
}
