// Package mqtt serves the node's devices and programs over MQTT: as the broker
// itself, or as a client of one that is already there. It turns messages into
// operations of edge/device and says what has become of them, tells devices what is
// desired of them, and offers edge/route what is published on routed topics.
// cmd/edgecore makes one Server. What a value may be and who wins is not decided
// here, and nothing is stored here.
//
// A message is acknowledged (PUBACK) when it is stored: a device that has the
// acknowledgement of a report may forget it. What is refused is acknowledged too, and
// answered: sending it again would not help. What could not be stored (a full disk,
// edgecore stops) is not acknowledged and its connection ends, so that the client
// sends it again.
//
// # Topics of Holdfast
//
// NAMESPACE and NAME are those of the Device. A device, or the program that serves
// it, publishes:
//
//	holdfast/NAMESPACE/NAME/report            {"temperature":21.5,"on":true}, or with the
//	                                          time of a value, in milliseconds since 1970:
//	                                          {"temperature":{"value":21.5,"timestamp":1735689600000}}
//	holdfast/NAMESPACE/NAME/report/PROPERTY   one value as text: 21.5
//	holdfast/NAMESPACE/NAME/state             online, offline or unknown; also as a last will
//
// Any program may set what the device shall do, as the cloud does:
//
//	holdfast/NAMESPACE/NAME/set               {"on":false}
//	holdfast/NAMESPACE/NAME/set/PROPERTY      false
//
// edgecore publishes:
//
//	holdfast/NAMESPACE/NAME/desired           {"on":false}: all desired values in force; retained
//	holdfast/NAMESPACE/NAME/desired/PROPERTY  false; retained
//	holdfast/NAMESPACE/NAME/result            {"error":"...","code":400,"property":"on","topic":"..."}
//	                                          for each update that was refused
//	holdfast/NODE/state                       online or offline, retained, at an external broker
//
// A report or set whose object has an "id" (and whose device has no property of that
// name) is answered when it is stored, too: {"ok":true,"id":7}. At the embedded broker
// a message of MQTT 5 with a response topic is answered there, with its correlation
// data, whether or not it was refused, and its PUBACK has a reason code.
//
// # Topics of KubeEdge
//
// Programs for KubeEdge find its topics, below $hw/events/device/NAMESPACE/NAME and
// $hw/events/node/NODE, with its payloads; package topic lists them. The form of
// before there were namespaces, $hw/events/device/NAME, means the namespace default.
// Properties cannot be added or deleted by messages: the DeviceModel says which there
// are. Devices have no attributes; `updated` says that the definition is another one.
//
// # Retained messages
//
// Updates are never retained by the embedded broker, and of retained updates that an
// external broker repeats only states are taken: values would come again after newer
// ones.
package mqtt
