package config

import "strings"

// nearest returns the candidate that whoever wrote name most likely meant: few changed letters, or the
// right last part under a wrong group ("dsn" for "postgres.dsn"). The first of equals wins.
func nearest(name string, candidates []string) string {
	best, least := "", -1
	for _, c := range candidates {
		if d := remoteness(name, c); least < 0 || d < least {
			best, least = c, d
		}
	}
	return best
}

// remoteness counts two for each changed letter of the whole path; or two for each changed letter of the
// last part, one for a group that was left out, and five for another group than the one written.
func remoteness(name, candidate string) int {
	whole := 2 * editDistance(name, candidate)
	part := 2*editDistance(lastPart(name), lastPart(candidate)) + 1
	switch {
	case firstPart(name) == firstPart(candidate):
	case strings.Contains(name, "."):
		part += 5
	default:
		part++
	}
	return min(whole, part)
}

func lastPart(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

func firstPart(name string) string {
	first, _, _ := strings.Cut(name, ".")
	return first
}

// editDistance counts the letters to insert, delete, replace or swap with their neighbour to make a into
// b (optimal string alignment: Boytsov, "Indexing Methods for Approximate Dictionary Searching", 2011).
func editDistance(a, b string) int {
	before := make([]int, len(b)+1) // distances of a[:i-2] to each b[:j]
	last := make([]int, len(b)+1)   // of a[:i-1]
	row := make([]int, len(b)+1)    // of a[:i]
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
