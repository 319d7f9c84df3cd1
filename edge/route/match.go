package route

import "strings"

// Match says whether an MQTT topic filter takes a topic: + is any one level, # at the
// end any number of levels. Topics that begin with $ are taken by none: they are
// edgecore's and the broker's own.
func Match(filter, topic string) bool {
	if topic == "" || topic[0] == '$' {
		return false
	}
	for {
		f, restOfFilter, moreFilter := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, restOfTopic, moreTopic := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !moreTopic {
			return !moreFilter || restOfFilter == "#" // a/# takes a, too
		}
		if !moreFilter {
			return false
		}
		filter, topic = restOfFilter, restOfTopic
	}
}
