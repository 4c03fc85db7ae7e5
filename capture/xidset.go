package capture

// xidSet is a set of transaction ids that lie near each other, such as the subtransactions of one
// transaction: a bit each, so that millions of them stay small. The zero value is empty.
type xidSet struct {
	pages map[uint32]*[64]uint64 // by id / 4096
	n     int
}

// add reports whether x was not in the set.
func (s *xidSet) add(x uint32) bool {
	p := s.pages[x>>12]
	if p == nil {
		if s.pages == nil {
			s.pages = map[uint32]*[64]uint64{}
		}
		p = new([64]uint64)
		s.pages[x>>12] = p
	}
	w, bit := &p[x>>6&63], uint64(1)<<(x&63)
	if *w&bit != 0 {
		return false
	}
	*w |= bit
	s.n++
	return true
}

// remove reports whether x was in the set.
func (s *xidSet) remove(x uint32) bool {
	if !s.has(x) {
		return false
	}
	s.pages[x>>12][x>>6&63] &^= uint64(1) << (x & 63)
	s.n--
	return true
}

func (s *xidSet) has(x uint32) bool {
	p := s.pages[x>>12]
	return p != nil && p[x>>6&63]&(1<<(x&63)) != 0
}

func (s *xidSet) len() int { return s.n }
