package topology

import "maps"

// The roles of nodes. A node without one writes, and is dialled by its neighbours.
const (
	RoleReader     = "reader"      // its users do not write
	RoleEdge       = "edge"        // it dials others, and nobody can dial it
	RoleEdgeReader = "edge_reader" // both
)

// IsReader reports whether users of a node of this role do not write.
func IsReader(role string) bool { return role == RoleReader || role == RoleEdgeReader }

// IsEdge reports whether nobody can dial a node of this role.
func IsEdge(role string) bool { return role == RoleEdge || role == RoleEdgeReader }

// As returns the graph with roles of nodes; those of other nodes are left out.
func (g *Graph) As(roles map[string]string) *Graph {
	with := *g
	with.roles = maps.Clone(roles)
	maps.DeleteFunc(with.roles, func(node, role string) bool { return role == "" || !g.Has(node) })
	return &with
}

// Edge reports whether nobody can dial the node.
func (g *Graph) Edge(node string) bool { return IsEdge(g.roles[node]) }

// detour is what it costs, in links, that a way leads on through a node. Ways lead through an edge only where there is no other one:
// it is often away, and behind the thinnest link.
func (g *Graph) detour(node string) int {
	if g.Edge(node) {
		return len(g.nodes)
	}
	return 0
}
