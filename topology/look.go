package topology

import (
	"maps"
	"slices"
	"time"
)

// Way is how another node's transactions come here.
type Way struct {
	From string // the node that is read from, "" if from none
	Lost bool   // the one who writes them is not reached by any way: what it has sent to some only must spread
}

// Outlook is what a node does by its view.
type Outlook struct {
	Ways map[string]Way // by node
	// Listen are the nodes to be listened to, sorted: those with a configured link, and others as long as these do not join all
	// who live. Knock are those among the latter that must be asked to listen back.
	Listen, Knock []string
}

// sought is what a view knows of links beside the configured ones.
type sought struct {
	extra map[string]time.Time // nodes that are listened to, and since when
	whole time.Time            // when nobody was missing last
	spare time.Time            // when such links were needed last, or there were none
	probe string               // the node that was looked for last
}

// probeFor is for how many hellos a node is listened to that is looked for.
const probeFor = 3

// Look says what to do now. It is to be asked at each hello: each time it looks for another one of the nodes that are missing.
func (v *View) Look(now time.Time) *Outlook {
	g := v.live(now, true)
	reach := g.Distances(v.own)
	o := &Outlook{Ways: v.ways(g, reach)}
	v.doubt(now, reach)
	v.tidy(now, len(reach))
	missing := v.missing(now, reach)
	if len(missing) > 0 {
		at, _ := slices.BinarySearch(missing, v.probe+"\x00") // the one behind the last
		v.probe = missing[at%len(missing)]
		v.Knocked(v.probe, now)
	}
	for _, node := range v.graph.nodes {
		_, extra := v.extra[node]
		if extra || slices.Contains(v.graph.near[v.own], node) {
			o.Listen = append(o.Listen, node)
		}
		if extra && slices.Contains(missing, node) {
			o.Knock = append(o.Knock, node)
		}
	}
	return o
}

// doubt marks the nodes that may be dead.
func (v *View) doubt(now time.Time, reach map[string]int) {
	for _, node := range v.graph.nodes {
		k := v.known[node]
		if _, reached := reach[node]; node != v.own && (k == nil || !reached || now.Sub(k.at) > v.after/quiet) {
			v.unsure[node] = now
		}
	}
}

// Knocked has a node listened to that has no configured link, since it asks for that or is looked for.
func (v *View) Knocked(node string, now time.Time) {
	if _, ok := v.extra[node]; ok || node == v.own || !v.graph.Has(node) || slices.Contains(v.graph.near[v.own], node) {
		return
	}
	v.extra[node] = now
}

// ways says from which node each other one's transactions are to be read. What a node wrote that cannot be reached spreads from
// the one among the others that has most of it.
func (v *View) ways(g *Graph, reach map[string]int) map[string]Way {
	ways := map[string]Way{}
	for _, o := range v.graph.nodes {
		if o == v.own {
			continue
		}
		root := o
		_, reached := reach[o]
		if !reached {
			root = v.furthest(o, reach)
		}
		w := Way{From: g.Next(v.own, root), Lost: !reached}
		if root == v.own && slices.Contains(v.graph.near[v.own], o) {
			w.From = o // its stream may be there though it is not
		}
		ways[o] = w
	}
	return ways
}

// furthest returns which of the nodes has most of what o wrote, the first one by name of several.
func (v *View) furthest(o string, among map[string]int) string {
	best, most := "", uint64(0)
	for _, node := range slices.Sorted(maps.Keys(among)) {
		has := v.has[o]
		if k := v.known[node]; k != nil {
			has = k.Has[o]
		} else if node != v.own {
			continue
		}
		if best == "" || has > most {
			best, most = node, has
		}
	}
	return best
}

// missing returns the nodes that cannot be reached and that it is up to this one to look for, sorted. Of those that can reach
// each other the first one by name looks, and each next one when that has not helped for a while: not everybody has a way to
// everybody. Nobody looks for edges, which nobody can dial: they look for the others, and ask them to listen back.
func (v *View) missing(now time.Time, reach map[string]int) []string {
	missing := slices.DeleteFunc(slices.Clone(v.graph.nodes), func(node string) bool { return has(reach, node) || v.graph.Edge(node) })
	if len(missing) == 0 || v.young(now) {
		v.whole = now
		return nil
	}
	turn := time.Duration(0)
	for node := range reach {
		if node < v.own {
			turn += 2 * v.after
		}
	}
	if now.Sub(v.whole) < turn {
		return nil
	}
	return missing
}

// tidy gives up listening to nodes without a configured link: to those that do not answer, and to all when the configured links
// join the nodes that are reached, of which there are so many.
func (v *View) tidy(now time.Time, reached int) {
	if len(v.extra) == 0 || len(v.live(now, false).Distances(v.own)) < reached {
		v.spare = now
	}
	maps.DeleteFunc(v.extra, func(node string, since time.Time) bool {
		s, age := v.heard[node], now.Sub(since)
		silent := age > probeFor*v.Pause() && (s == nil || now.Sub(s.last) > 2*v.after)
		return silent || age > 2*v.after && now.Sub(v.spare) > 2*v.after
	})
}
