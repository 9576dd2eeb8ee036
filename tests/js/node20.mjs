// Node 20 lacks what some of libp2p's dependencies use.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((...functions) => { [resolve, reject] = functions })
  return { promise, resolve, reject }
}
