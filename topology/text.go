package topology

import (
	"slices"
	"strings"
)

// String gives the nodes, and behind them their roles and the links as readers count them: "a b c c:edge a-b a-c". Equal graphs have
// equal texts, whatever else each node was told of how to reach the others.
func (g *Graph) String() string {
	words := slices.Clone(g.nodes)
	for _, node := range g.nodes {
		if role := g.roles[node]; role != "" {
			words = append(words, node+":"+role)
		}
	}
	for _, a := range g.nodes {
		for _, b := range g.near[a] {
			if a < b {
				words = append(words, Link{a, b}.String())
			}
		}
	}
	return strings.Join(words, " ")
}

// Difference says in what the texts of two graphs differ, one that is here and one that is there; empty: in nothing.
func Difference(here, there string) string {
	ours, theirs := strings.Fields(here), strings.Fields(there)
	var all []string
	for _, x := range []struct {
		where     string
		some, not []string
	}{{"only here: ", ours, theirs}, {"only there: ", theirs, ours}} {
		if only := slices.DeleteFunc(slices.Clone(x.some), func(w string) bool { return slices.Contains(x.not, w) }); len(only) > 0 {
			all = append(all, x.where+strings.Join(only, ", "))
		}
	}
	return strings.Join(all, "; ")
}
