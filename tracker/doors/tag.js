// Keeps the click id that a visitor came with in a cookie of this site, and reports sales with it:
//   <script src="https://go.example.com/tag.js?key=KEY"></script>
//   <script>clickdam.convert({order_id: "1042", amount: "49.90", currency: "EUR"});</script>
// `data-parameter` names the parameter of the landing page's address that has the click id (click_id).
(function (window, document) {
  "use strict";
  var script = document.currentScript;
  var cookie = "clickdam_click_id";
  var plain = /^[A-Za-z0-9._~-]{1,255}$/; // nothing that could end the cookie, or add an attribute to it
  var days30 = 2592000;

  function said(address, name) {
    var parts = (address.split("#")[0].split("?")[1] || "").split("&");
    for (var n = 0; n < parts.length; n++) {
      if (parts[n].split("=")[0] === name) return parts[n].slice(name.length + 1);
    }
    return "";
  }

  function keep(click) {
    var secure = window.location.protocol === "https:" ? "; Secure" : "";
    document.cookie = cookie + "=" + click + "; Max-Age=" + days30 + "; Path=/; SameSite=Lax" + secure;
  }

  function kept() {
    var found = ("; " + document.cookie).split("; " + cookie + "=");
    return found.length > 1 ? found[1].split(";")[0] : "";
  }

  function convert(sale) {
    var asked = "key=" + said(script.src, "key");
    var all = Object.assign({click_id: kept()}, sale);
    Object.keys(all).forEach(function (name) {
      var value = all[name];
      if (value !== "" && value != null) asked += "&" + encodeURIComponent(name) + "=" + encodeURIComponent(value);
    });
    var image = new window.Image();
    image.referrerPolicy = "origin"; // says whose page this is, also where the page tells nobody
    image.src = script.src.split("/tag.js")[0] + "/pixel.gif?" + asked;
    return image;
  }

  var landed = said(window.location.href, script.getAttribute("data-parameter") || "click_id");
  if (plain.test(landed)) keep(landed);
  window.clickdam = {convert: convert};
})(window, document);
